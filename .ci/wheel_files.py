"""Compare wheels with the checkout: wheel_files.py CHECKOUT WHEEL ...; exit 1 if they differ."""

import sys
import zipfile
from pathlib import Path


def expected(root: Path) -> set[str]:
    """Return the files of a checkout that a wheel should hold, under their names in it."""
    code = {
        str(file.relative_to(root))
        for name in ("sq", "hydra_plugins")
        for file in (root / name).rglob("*.py")
    }
    data = {
        f"sq/{file.relative_to(root)}"
        for name in ("conf", "experiments")
        for file in (root / name).rglob("*.yaml")
    }
    assets = {
        str(file.relative_to(root))
        for file in (root / "sq" / "report" / "assets").iterdir()
        if file.is_file()
    }
    weights = {str(file.relative_to(root)) for file in (root / "sq").rglob("*.safetensors")}
    return code | data | assets | weights | {"sq/py.typed"}


def held(wheel: str) -> set[str]:
    """Return the files of `wheel`, without what describes the wheel itself."""
    return {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}


def main(root: str, *wheels: str) -> int:
    """Compare; return the exit code."""
    wanted, different = expected(Path(root)), False
    for wheel in wheels:
        files = held(wheel)
        for what, names in (("lacks", wanted - files), ("has", files - wanted)):
            if names:
                different = True
                print(f"{wheel} {what} {', '.join(sorted(names))}")
        print(f"{Path(wheel).name}: {len(files)} files")
    return int(different)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
