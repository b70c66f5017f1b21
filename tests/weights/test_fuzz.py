"""A sample of ``tests/measure/fuzz_files.py``: damaged files are refused by name, or make the same picture."""

from measure.fuzz_files import GOOD, run
from support.damage import copy_with_checksums


def test_damaged_files(pristine, tmp_path):
    copy_with_checksums(pristine, tmp_path / "pristine")
    results = list(run(tmp_path / "pristine", range(100)))
    assert [result for result in results if result.outcome not in GOOD] == []
    assert sum(result.outcome == "refused" for result in results) > 50
