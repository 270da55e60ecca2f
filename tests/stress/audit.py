"""Known advisories about the pinned packages, of the Open Source Vulnerabilities database (osv.dev): `make audit`.

Exit code 0: none; 1: some, one a line; 3: the database cannot be reached, and nothing is known.
"""

import json
import re
import sys
import urllib.request
from pathlib import Path

PINS = Path(__file__).parents[2] / "constraints.txt"
ADDRESS = "https://api.osv.dev/v1/querybatch"


def main() -> int:
    pins = re.findall(r"^([\w.-]+)==([\w.]+)", PINS.read_text(), re.M)
    queries = [{"package": {"ecosystem": "PyPI", "name": name}, "version": version} for name, version in pins]
    request = urllib.request.Request(ADDRESS, json.dumps({"queries": queries}).encode())
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            results = json.load(answer)["results"]
    except (OSError, ValueError, KeyError) as error:
        print(
            f"audit: {ADDRESS} cannot be reached ({error}): nothing is known of {len(pins)} packages", file=sys.stderr
        )
        return 3
    found = [
        f"{name} {version}: {entry['id']}  https://osv.dev/{entry['id']}"
        for (name, version), result in zip(pins, results, strict=True)
        for entry in result.get("vulns", [])
    ]
    print("\n".join([*found, f"audit: {len(found)} advisories about {len(pins)} packages"]))
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
