"""What can be said of the name of an encoder without torch."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from bench import registry
from bench.known import LIBRARIES, of_library
from bench.spec import UsageError, unknown


def check_encoder_name(name: str) -> None:
    """Raises UsageError for an encoder that is in no file, an unknown library, and one that is missing.

    Whether the library has the encoder is asked where it is loaded (bench.encoders.common.build).
    """
    if of_library(name):
        library = name.partition(":")[0]
        if library not in LIBRARIES:
            raise UsageError(unknown("library of encoders", library, LIBRARIES))
        if library == "timm" and find_spec("timm") is None:
            raise UsageError(f"the encoder {name} needs timm: pip install 'robust-ssl-bench[timm]'")
        return
    try:
        registry.source("encoder", name)
    except UsageError as error:
        others = "" if name.endswith(".py") else "".join(f", {library}:NAME" for library in LIBRARIES)
        raise UsageError(f"{error}{others}") from None


def encoder_fields(name: str | None) -> dict[str, Any]:
    """The fields ``encoder`` and ``encoder_path`` of a RunSpec: a file of the user's own goes by its stem."""
    if name is None or not name.endswith(".py"):
        return {"encoder": name}
    return {"encoder": Path(name).stem, "encoder_path": str(Path(name).resolve())}
