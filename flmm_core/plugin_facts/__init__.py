"""What plugins offer; those of other distributions are asked without importing them here.

A stranger's module can hang when it is imported, end the process, or change it for everybody.
`find.py` has it imported by another process (`examiner.py`), within a limit of time, and remembers
what was found for as long as nothing changes. Only a plugin that is used is imported here.
"""
