from .flux_core.cli import program

program()
