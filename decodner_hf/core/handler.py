"""Answers requests on Hugging Face Inference Endpoints, which look for `handler.py` at the root of a repository.

In: the JSON of a request. Out: what the pipeline returns.
Saved folders with code hold a copy at their root, so this file imports no other file of its folder.
"""

from typing import Any

from transformers import pipeline

KEYS = ("inputs", "parameters")


class EndpointHandler:
    """Loads the repository's model once and answers requests with it."""

    def __init__(self, path: str = "") -> None:
        """Loads the model, with the code that it carries.

        Args:
            path: the repository's folder.
        """
        self.pipe = pipeline("decodner-ner", model=path, trust_remote_code=True)

    def __call__(self, data: dict[str, Any]) -> Any:
        """Answers one request.

        Args:
            data: "inputs": a text, an object such as {"text": "...", "candidate_labels": ["person"]}, or a list of
                either; and, if wished, "parameters": the pipeline's keyword arguments.

        Returns:
            The entities of a single input, or a list of them per input.

        Raises:
            ValueError: other keys or values; the message says what is allowed.
        """
        if not isinstance(data, dict) or "inputs" not in data or not set(data) <= set(KEYS):
            given = sorted(map(str, data)) if isinstance(data, dict) else type(data).__name__
            raise ValueError(f'a request is an object with "inputs" and, if wished, "parameters", not {given}.')
        inputs, parameters = data["inputs"], data.get("parameters") or {}
        if not isinstance(inputs, str | list | dict) or not isinstance(parameters, dict):
            raise ValueError(
                '"inputs" must be a text, an object or a list of these, and "parameters" an object; given: '
                f"{type(inputs).__name__} and {type(parameters).__name__}."
            )
        return self.pipe(inputs, **parameters)
