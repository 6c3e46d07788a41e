"""What is imported once and stays is left out of garbage collections; what is made later is collected as before."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import gc, weakref
from sluice.flux_core.processor.lasting_imports import lasting_imports

class Ring:
    def __init__(self): self.itself = self

def dies(ring):
    seen = weakref.ref(ring)
    del ring
    gc.collect()
    return seen() is None

before = gc.get_freeze_count()
try:
    with lasting_imports():
        inside, kept = gc.isenabled(), Ring()
        raise ImportError
except ImportError:
    failed = gc.isenabled(), gc.get_freeze_count() - before
with lasting_imports():
    lasting = weakref.ref(Ring())
gc.collect()
print(inside, *failed, lasting() is not None, gc.isenabled(), dies(Ring()))
gc.disable()
count = gc.get_freeze_count()
with lasting_imports():
    pass
print(gc.isenabled(), gc.get_freeze_count() - count)
"""


def test_collections_leave_out_what_was_imported_and_go_on_afterwards(prologue: str) -> None:
    ran = subprocess.run([sys.executable, "-c", prologue + CODE], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines() == ["False True 0 True True True", "False 0"]
