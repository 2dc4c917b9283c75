"""The report: one HTML file with the model's quality, its errors, and their provenance."""

from flows.display.metrics import PreviousEvaluation, compared_rows, metrics_rows
from flows.report.dvc_plots import plot_images, write_plot_data
from flows.report.explorer import ExplorerInput
from flows.report.page import CalibrationInput, Looks, ReportInput, write_report
from flows.report.subgroups import SubgroupAnalysis

__all__ = [
    "CalibrationInput",
    "ExplorerInput",
    "Looks",
    "PreviousEvaluation",
    "ReportInput",
    "SubgroupAnalysis",
    "compared_rows",
    "metrics_rows",
    "plot_images",
    "write_plot_data",
    "write_report",
]
