"""
The subcommands of C{rest-server}, one file each. They start no reactor.
"""
