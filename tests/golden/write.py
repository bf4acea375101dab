"""Write the loss curves anew, after a change that is meant to change them: `python -m tests.golden.write`."""

from __future__ import annotations

import json

from tests.golden.curves import FAMILIES, HERE, curve


def main() -> None:
    curves = {family: [round(loss, 6) for loss in curve(family)] for family in FAMILIES}
    lines = [f"  {json.dumps(family)}: {json.dumps(losses)}" for family, losses in curves.items()]
    (HERE / "curves.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
