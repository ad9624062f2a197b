import platform
import subprocess
import sys

import pytest

CODE = """
import resource, sys
from sq.runtime import malloc as heap
if sys.argv[1] == "keep": assert heap.keep()
import torch
torch.set_num_threads(1)
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(30): torch.ones(2**24)  # 64 MiB; aligned blocks leave holes, which take up to ten turns to settle
before = faults()
for _ in range(10): torch.ones(2**24)
print(faults() - before)
"""


def faults(how):
    done = subprocess.run(
        [sys.executable, "-c", CODE, how], capture_output=True, text=True, check=True
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_freed_memory_is_used_again():
    assert faults("keep") < 0.3 * faults("plain")
