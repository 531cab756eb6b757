"""The requirements of extras of the installed package, one a line: `python scripts/extras.py test,track`."""

import sys
from importlib.metadata import requires

from packaging.requirements import Requirement

for extra in sys.argv[1].split(","):
    for line in requires("llmshearing") or []:
        requirement = Requirement(line)
        if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
            requirement.marker = None
            sys.stdout.write(f"{requirement}\n")
