"""The demo page as a Space of the Hugging Face Hub: copy this folder's files to the root of a Space.

In: DECODNER_MODEL in the Space's variables (a Hub id; the bundled model if unset). Out: the page, on the Space's port.
"""

import os

from transformers import pipeline

from decodner_hf.serving.demo import demo_app
from decodner_hf.serving.server import listen, run_until_stopped

MODEL = os.environ.get("DECODNER_MODEL")
HOST = os.environ.get("GRADIO_SERVER_NAME", "0.0.0.0")
PORT = int(os.environ.get("GRADIO_SERVER_PORT", "7860"))

if __name__ == "__main__":
    with listen(HOST, PORT) as listener:
        run_until_stopped(demo_app(pipeline("decodner-ner", model=MODEL), MODEL), listener, shutdown_seconds=2)
