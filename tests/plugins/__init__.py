"""What a user would write, one file for each seam."""

from pathlib import Path

PLUGINS = {file.stem: file for file in sorted(Path(__file__).parent.glob("*.py")) if file.stem != "__init__"}
METHODS = [file for file in PLUGINS.values() if "class Method(" in file.read_text(encoding="utf-8")]
