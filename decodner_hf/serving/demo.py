"""Builds the demo page: text, labels, threshold and overlap in; marked entities, a table, scores and code out.

In: a pipeline. Out: an ASGI application. The page loads nothing from elsewhere: no analytics, no fonts, no CDN, and a
policy by which the browser refuses what is not from this server.
Knows nothing of sockets, nor of how entities are found.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import demo_view as view
from .demo_samples import SAMPLES, Sample

try:
    import gradio
    from fastapi import FastAPI, Request, Response
except ImportError as error:
    raise ImportError('the demo page needs Gradio: pip install "decodner-hf[demo]".') from error

if TYPE_CHECKING:
    from ..core.pipeline import DecodNERPipeline

OVERLAPS = {"flat: entities never overlap": "flat", "nested: none cross": "nested", "all": "all"}
POLICY = (  # Gradio's page has scripts and styles of its own inline
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; object-src 'none'; base-uri 'self'"
)
STYLE = """
.document, .text { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 2.2; font-size: 1.05em; }
mark { color: #000; padding: 0.2em 0.3em; border-radius: 0.3em; }
mark b { font-size: 0.65em; margin-left: 0.4em; vertical-align: middle; color: #000; }
#table * { font-family: system-ui, sans-serif; font-size: 0.97em; } #table td, #table th { padding-block: 0.25em; }
.notice { color: #b42318; font-weight: 600; overflow-wrap: anywhere; }
.bar { display: grid; grid-template-columns: 11em 1fr 4em; gap: 0.6em; align-items: center; margin: 0.15em 0; }
.bar span { overflow-wrap: anywhere; } .bar i { background: #4c8bf5; height: 0.8em; border-radius: 0.2em; }
.bar b { text-align: right; font-variant-numeric: tabular-nums; font-weight: 400; }
"""
WIDTHS = ["25%", "15%", "12%", "12%", "36%"]  # of the table's columns


def demo_app(pipe: "DecodNERPipeline", model: str | None = None) -> FastAPI:
    """Returns the page as an application that any ASGI server can run.

    Args:
        pipe: the pipeline.
        model: its folder or Hub id, for the code on the page; None for the bundled model.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    async def with_policy(request: Request, call_next: Callable[..., Any]) -> Response:
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        return response

    app.middleware("http")(with_policy)
    font = ("system-ui", "sans-serif")  # plain names: Gradio would load others from the network
    return gradio.mount_gradio_app(
        app,
        build_page(pipe, model),
        path="/",
        theme=gradio.themes.Default(font=font, font_mono=("ui-monospace", "monospace")),
        css=STYLE,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        show_error=False,
        enable_monitoring=False,
        mcp_server=False,
    )


def build_page(pipe: "DecodNERPipeline", model: str | None = None) -> "gradio.Blocks":
    """Returns the page as Gradio's blocks, see `demo_app`."""

    def find(*fields: Any) -> tuple[str, list[list[Any]], str]:
        try:
            form = view.Form(*fields)
            entities = pipe(form.text, **form.arguments())
            shown = view.highlighted(form.text, entities)
            return shown, view.rows(entities), view.python_code(form, model)
        except ValueError as error:
            return view.notice(str(error)), [], ""

    def score(words: str, *fields: Any) -> str:
        try:
            form = view.Form(*fields)
            return view.bars(view.label_scores(pipe, form, *view.find_words(form, words)))
        except ValueError as error:
            return view.notice(str(error))

    def choose(event: gradio.SelectData) -> str:
        return str(event.row_value[view.COLUMNS.index("text")])

    with gradio.Blocks(title="decodner", analytics_enabled=False) as page:
        gradio.Markdown("# Named entities of any type\nName the types to look for, one per line, and read the scores.")
        with gradio.Row():
            samples = {sample: gradio.Button(sample.name, size="sm", min_width=60) for sample in SAMPLES}
        with gradio.Row():
            with gradio.Column():
                fields = _fields(SAMPLES[0], pipe.model.config)
                start = gradio.Button("Find entities", variant="primary", elem_id="find")
            with gradio.Column():
                found = gradio.HTML(elem_id="found", min_height=120)
                table = gradio.Dataframe(
                    headers=list(view.COLUMNS),
                    datatype="str",
                    interactive=False,
                    label="Table",
                    elem_id="table",
                    column_widths=WIDTHS,
                    wrap=True,
                )
        with gradio.Row():
            with gradio.Column():
                words = gradio.Textbox(
                    label="Scores of all labels for these words", placeholder="words of the text, or click a row",
                    elem_id="words",
                )  # fmt: skip
                ask = gradio.Button("Show scores", elem_id="ask")
                scores = gradio.HTML(elem_id="scores")
            code = gradio.Code(language="python", label="The same in Python", interactive=False, elem_id="code")
        private: dict[str, Any] = {"api_visibility": "private", "show_progress": "minimal"}
        gradio.on([start.click, fields[0].submit], find, fields, [found, table, code], **private)
        gradio.on([ask.click, words.submit], score, [words, *fields], scores, **private)
        table.select(choose, None, words, **private).then(score, [words, *fields], scores, **private)
        for sample, button in samples.items():
            button.click(_filled(sample), None, fields[:2], **private).then(
                find, fields, [found, table, code], **private
            )
    return page


def _fields(sample: Sample, config: Any) -> list[Any]:
    """Returns the page's inputs in the order of `view.Form`."""
    own = ", ".join(config.labels) or "none"
    return [
        gradio.Textbox(sample.text, label="Text", lines=5, max_lines=20, elem_id="text"),
        gradio.Textbox(
            sample.labels, label="Labels, one per line: NAME or NAME=DESCRIPTION", lines=5, max_lines=20,
            placeholder=f"the model's own: {own}", elem_id="labels",
        ),
        gradio.Checkbox(True, label="The model's own threshold", elem_id="own-threshold"),
        gradio.Slider(0.0, 1.0, config.threshold, step=0.01, label="Threshold", elem_id="threshold"),
        gradio.Radio(list(OVERLAPS.items()), value=config.overlap, label="Overlap", elem_id="overlap"),
    ]  # fmt: skip


def _filled(sample: Sample) -> Callable[[], tuple[str, str]]:
    return lambda: (sample.text, sample.labels)
