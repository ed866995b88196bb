"""The back end, `reviews`: answers with its version. `VERSION` is in the environment."""

from __future__ import annotations

import os

from flask import Flask

app = Flask(__name__)
VERSION = os.environ.get("VERSION", "v1")


@app.get("/reviews/<int:book>")
def reviews(book: int) -> dict[str, object]:
    return {"book": book, "version": VERSION, "stars": 5 if VERSION == "v2" else None}
