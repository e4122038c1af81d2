"""Pages that open without a network: of figures and text (page.py), and of finished runs together.

runs.py finds runs and makes the report of them; summary.py says in plain words what came out;
facts.py what was measured, on what and with which commands; methods.py has the sections of each
method, circuits.py those of circuits; tables.py numbers and tables as HTML, style.py the looks.
"""

from circuits.report.page import page
from circuits.report.runs import Found, ReportError, Run, find_runs, report

__all__ = ["Found", "ReportError", "Run", "find_runs", "page", "report"]
