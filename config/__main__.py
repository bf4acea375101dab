"""`python -m gpt_mesh.config page` prints docs/parameters.md, `… schema` prints configs/schema.json."""

from __future__ import annotations

import argparse
import json

from gpt_mesh.config.json_schema import json_schema
from gpt_mesh.config.page import reference_page


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m gpt_mesh.config", description=__doc__)
    parser.add_argument("what", choices=("page", "schema"))
    if parser.parse_args().what == "page":
        print(reference_page(), end="")
    else:
        print(json.dumps(json_schema(), indent=2))


if __name__ == "__main__":
    main()
