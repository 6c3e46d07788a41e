from .flux_core.commands.cli import program

program()
