"""Locates the bundled default model.

In: nothing. Out: its folder, of the same form as any saved model.
Knows nothing of what is in it; imports nothing heavy.
"""

from pathlib import Path

FOLDER = Path(__file__).parent


def default_model() -> Path:
    """Returns the folder of the bundled default model.

    Raises:
        FileNotFoundError: an installation without it.
    """
    if not (FOLDER / "config.json").is_file():
        raise FileNotFoundError(
            f"this installation has no default model: there is no {FOLDER / 'config.json'}. "
            "Install decodner-hf again from a complete wheel or checkout, or name a model (--model, model=...)."
        )
    return FOLDER
