"""Runs `decodner serve` or `decodner demo` as a process of its own, on this machine only, for benchmark and tests."""

import json
import re
import subprocess
import sys
import urllib.error
import urllib.request

ADDRESS = re.compile(r"(http://127\.0\.0\.1:\d+)")
PATIENCE = 120  # seconds


class ServedProcess:
    """A service on a free port of this machine; `with` ends it."""

    def __init__(self, *arguments, command="serve", port=0):
        """Starts it and waits until its model is loaded."""
        program = [sys.executable, "-m", "decodner_cli", command, "--port", str(port), *arguments]
        self.process = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
        self.messages = []
        for line in self.process.stderr:
            self.messages.append(line)
            if found := ADDRESS.search(line):
                self.address = found[1]
                return
        raise RuntimeError(f"the service did not start: {''.join(self.messages)}")

    def __enter__(self):
        """Returns itself."""
        return self

    def __exit__(self, *_):
        """Kills the process, if it has not ended."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.stderr.close()
        self.process.wait(PATIENCE)

    def post(self, request):
        """Returns status and JSON of an extraction."""
        return self.open("/extract", json.dumps(request).encode())

    def open(self, path, body=None):
        """Returns status and JSON (or text) of a path."""
        asked = urllib.request.Request(self.address + path, body, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(asked, timeout=PATIENCE) as answered:
                status, content = answered.status, answered.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        return status, json.loads(content) if content[:1] in b"{[" else content.decode()

    def wait(self):
        """Waits for the process to end; returns its exit code and what it has written to standard error."""
        self.messages += self.process.stderr.readlines()
        return self.process.wait(PATIENCE), "".join(self.messages)
