"""The report of a comparison: one HTML page that opens offline, and a text for a model card.

    summary.py, folder_study.py   what was measured
    comparison.py                 either of them as one table: what the page and the card show
    gallery.py, timeline.py       pictures at equal seeds, and how one of them came about
    page.py                       fills page.html, with page.css and the scripts (*.js) inside

A package of its own because it carries those files; everything is plain data in and text out.
"""

from swiftmask.evaluate.report.comparison import Comparison, comparison_of, findings, model_card
from swiftmask.evaluate.report.folder_table import FolderReport
from swiftmask.evaluate.report.gallery import Gallery, picture_uri
from swiftmask.evaluate.report.page import Picture, html_report
from swiftmask.evaluate.report.timeline import Timeline, TimelineRecorder

__all__ = [
    "Comparison",
    "FolderReport",
    "Gallery",
    "Picture",
    "Timeline",
    "TimelineRecorder",
    "comparison_of",
    "findings",
    "html_report",
    "model_card",
    "picture_uri",
]
