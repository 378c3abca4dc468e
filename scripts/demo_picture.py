"""Takes a picture of the demo page with the bundled model, for the documentation.

In: nothing but an installed Chromium. Out: a PNG of at most 200 kB.
"""

import argparse
import shutil
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).parent / "benchmarks"))

from served_process import ServedProcess

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
FLAGS += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
WIDTH, HEIGHT = 1180, 900
MOST_BYTES = 200_000


def main() -> int:
    """Parses the flag and writes the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "docs" / "demo.png")
    parser.add_argument("--browser", default=shutil.which("chromium"), help="(default: the chromium on the path)")
    options = parser.parse_args()
    with ServedProcess(command="demo") as served, sync_playwright() as play:
        browser = play.chromium.launch(executable_path=options.browser, args=FLAGS)
        page = browser.new_page(viewport={"width": WIDTH, "height": HEIGHT}, color_scheme="light")
        page.goto(served.address)
        page.get_by_role("button", name="History", exact=True).click()
        page.locator("#found mark").first.wait_for()
        page.locator('#table [data-testid="cell-0-4"]:visible').click()
        page.locator("#scores .bar").first.wait_for()
        page.mouse.move(0, 0)
        page.screenshot(path=options.out, full_page=True, animations="disabled")
        browser.close()
    size = options.out.stat().st_size
    print(f"{options.out}: {size:,} bytes")
    return int(size > MOST_BYTES)


if __name__ == "__main__":
    sys.exit(main())
