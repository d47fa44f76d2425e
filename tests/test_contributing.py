"""The operator that CONTRIBUTING walks through is the operator it says: one file that keeps the whole contract."""

import importlib.util
import re
import sys
from pathlib import Path

from bodyplan.testing import check_operator

PAGE = Path(__file__).parent.parent / "CONTRIBUTING.md"


def test_the_operator_in_contributing_passes_the_contract(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    file = tmp_path / "leaky.py"
    file.write_text(code.replace("from ..", "from bodyplan.space."))
    spec = importlib.util.spec_from_file_location("leaky_example", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules["leaky_example"] = module
    spec.loader.exec_module(module)
    check_operator(module.Leaky(), width=32, smaller=[(module.Leaky(), 16)])
