"""
Flags, environment and TOML file, and the settings made of them.
"""
