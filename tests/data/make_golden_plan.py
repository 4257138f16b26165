"""Writes golden_plan.txt. Run it once per change of law 1, and say in the commit why old runs may no longer be
repeated: `python -m tests.data.make_golden_plan`.
"""

from tests.data.test_plan import GOLDEN, golden_rows

if __name__ == "__main__":
    GOLDEN.write_text("\n".join(golden_rows()) + "\n")
