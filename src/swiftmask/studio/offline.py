"""Gradio without telemetry: it reads the environment when it is imported, so it is imported here alone."""

import os

from swiftmask.core.optional import library

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["GRADIO_RUN_HISTORY"] = "False"

gr = library("gradio", "swiftmask studio")
