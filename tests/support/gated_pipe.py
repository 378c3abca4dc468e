"""A pipeline without a model that can be held up, for tests of what sends documents to one."""

from threading import Event

REPORT = {"words_left_out": []}


class GatedPipe:
    """Waits for `gate` in every call and notes it; refuses texts that say BAD, breaks at texts that say BUG."""

    def __init__(self):
        self.gate, self.entered = Event(), Event()
        self.calls = []  # (texts, arguments)
        self.gate.set()

    def hold(self):
        """Lets the next call wait; returns nothing before `gate` is set again."""
        self.gate.clear()
        self.entered.clear()

    def __call__(self, inputs, **arguments):
        documents = [inputs] if isinstance(inputs, dict) else list(inputs)
        self.calls.append(([document["text"] for document in documents], arguments))
        self.entered.set()
        assert self.gate.wait(30)
        if isinstance(inputs, dict):
            return self.one(inputs)
        assert arguments["on_error"] == "skip"
        return map(self.one_or_error, documents)

    def one_or_error(self, document):
        try:
            return self.one(document)
        except ValueError as error:
            return error

    def one(self, document):
        if "BAD" in document["text"]:
            raise ValueError("BAD is refused.")
        if "BUG" in document["text"]:
            raise RuntimeError(f"out of memory at {document['text']}")
        return {"entities": [{"word": document["text"]}], "report": REPORT}
