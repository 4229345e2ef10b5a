"""The report of a study: one HTML page that opens offline, and a text for a model card.

    findings.py               what the table says, in sentences
    gallery.py, timeline.py   images at equal seeds, and how one of them came about
    page.py                   fills page.html, with page.css and the scripts (*.js) inside

A package of its own because it carries those files; everything is plain data in and text out.
"""

from swiftmask.evaluate.report.findings import findings, model_card
from swiftmask.evaluate.report.gallery import Gallery, image_uri
from swiftmask.evaluate.report.page import html_report
from swiftmask.evaluate.report.timeline import Timeline, TimelineRecorder

__all__ = [
    "Gallery",
    "Timeline",
    "TimelineRecorder",
    "findings",
    "html_report",
    "model_card",
    "image_uri",
]
