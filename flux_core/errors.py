"""Every exception that a user can see.

    SluiceError                 the user can do something about it; the text says what
    ├── WorkflowError           an image or JSON file does not hold a workflow we can read
    ├── PromptError             a workflow was read, but cannot run; carries every problem found
    ├── MissingFileError        a model, tokenizer or input image is not where it was looked for
    ├── FileFormatError         a file is there, but is not what its name or place promises
    ├── InputError              values that cannot work together (sizes, channels, options)
    ├── NotFinite               numbers on the way to an image became NaN or infinite
    ├── BudgetTooSmall          the memory allowed cannot hold even the smallest working set
    └── Interrupted             the user stopped the run

The text of each says what is needed, what is there, and what to do. None of them is caught and ignored.
"""

from __future__ import annotations

from collections.abc import Sequence


class SluiceError(Exception):
    """Root of all errors that are answered with one clear sentence instead of a traceback."""


class WorkflowError(SluiceError):
    """The file holds no workflow, or one that cannot be read."""


class PromptError(SluiceError):
    """The workflow cannot run. `problems` lists all of them, one readable sentence each."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = tuple(problems)


class MissingFileError(SluiceError, FileNotFoundError):
    """A named file is in none of the folders that were searched."""


class FileFormatError(SluiceError, ValueError):
    """The bytes of a file contradict its format."""


class InputError(SluiceError, ValueError):
    """Inputs that are each valid cannot work together."""


class NotFinite(SluiceError, ArithmeticError):
    """Numbers became NaN or infinite, so there is no image. The text says where, and in which file if it is known."""


class BudgetTooSmall(SluiceError):
    """The memory allowed is below the smallest feasible one, which the text names."""


class Interrupted(SluiceError):
    """The run was stopped on request."""
