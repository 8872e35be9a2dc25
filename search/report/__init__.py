"""The report of a study: one self-contained HTML file that begins with what to train next.

Import this package late: it draws, and fits the law.
"""

from search.report.content import Report, report_of
from search.report.making import Findings, findings_of
from search.report.page import render, write_page

__all__ = ["Findings", "Report", "findings_of", "render", "report_of", "write_page"]
