"""The report: one HTML file that says how good the model is, where it fails, and what it was made from."""

from flows.display.metrics import PreviousEvaluation, compared_rows, metrics_rows
from flows.report.dvc_plots import pictures, write_plot_data
from flows.report.explorer import ExplorerInput
from flows.report.page import CalibrationInput, ReportInput, write_report
from flows.report.subgroups import Breakdown

__all__ = [
    "PreviousEvaluation",
    "Breakdown",
    "CalibrationInput",
    "ExplorerInput",
    "ReportInput",
    "compared_rows",
    "metrics_rows",
    "pictures",
    "write_plot_data",
    "write_report",
]
