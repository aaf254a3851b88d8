import pytest

from gsr_kernels.continual.evaluators import EVALUATORS
from gsr_kernels.continual.examples import Example


@pytest.mark.parametrize(
    ("answer", "completion", "right"),
    [
        ("first 7, then 42.", "#### 42", True),
        (r"The answer is \boxed{\frac{1}{2}}", "0.5", True),
        (r"from \boxed{3} to \boxed{{4}}, 5 steps", "4", True),
        ("1,000 apples", "1000.0", True),
        ("3-2 = 1", "1", True),
        ("5-2", "-2", False),
        ("it is -3", r"\boxed{-3}", True),
        (r"\boxed{x+1}", r"\boxed{X + 1}", True),
        (r"\boxed{12\%}", "12", True),
        (r"\boxed{3 \text{ cm}}", "3", True),
        ("1e3", "1000", True),
        ("3/0", "3", False),
        ("nothing", "12", False),
        ("nothing", "nothing", False),
    ],
)
def test_final_answers_are_equal_as_numbers(answer, completion, right):
    assert EVALUATORS["final"].total([Example("?", completion)], [answer]) == 100 * right
