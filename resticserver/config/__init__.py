"""
Flags, environment and TOML file, and the settings that come of them.
"""
