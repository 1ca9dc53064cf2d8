"""The C kernels: their threads, how they store outputs, what Python passes to them."""

import ctypes
import re
import sys

import pytest
import torch

from megalodon_tasks.cuda_ops import native
from tests.cuda_ops.cases import Cema, assert_equal_calls, evaluate

COMPILER = native.why_not(native.CEMA)
pytestmark = pytest.mark.skipif(COMPILER is not None, reason=str(COMPILER))


@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_number_of_threads_changes_nothing_but_the_order_of_sums(bidirectional):
    case = Cema(5, 700, "right", not bidirectional, dim=37, bidirectional=bidirectional)
    before = torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(evaluate(case, "native"))
    torch.set_num_threads(before)
    assert torch.equal(found[0][0]["y"], found[1][0]["y"])
    assert torch.equal(found[0][1]["x"], found[1][1]["x"])
    assert_equal_calls(*found, 1e-5, 1e-5)


def test_large_outputs_are_written_around_the_caches(monkeypatch):
    module = sys.modules["megalodon_tasks.cuda_ops.complex_ema.native_op"]
    case = Cema(2, 300, "right", True, dim=32)
    usual = evaluate(case, "native")
    monkeypatch.setattr(module, "_LARGE", 0)
    assert_equal_calls(evaluate(case, "native"), usual, 0.0, 0.0)


def test_the_structure_of_a_call_is_that_of_the_c_file():
    from megalodon_tasks.cuda_ops.complex_ema.native_op import _Call

    body = re.search(r"struct call \{(.*?)\n\};", native.CEMA.read_text(), re.DOTALL)[1]
    body = re.sub(r"/\*.*?\*/", "", body)
    names = re.findall(r"\*?(\w+)[,;]", body)
    assert names == [name for name, _ in _Call._fields_]
    assert ctypes.sizeof(_Call) == 8 * len(names)
