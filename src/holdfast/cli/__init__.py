"""The command line: thin commands that read settings, call the library, print, and answer with the documented exit codes."""
