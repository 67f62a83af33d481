"""``report.html``: a run as one page that needs nothing but a browser, also years later and without a network."""

from mil_zoo.report.page.maps import MAPS_MIB
from mil_zoo.report.page.write import write_documents, write_page

__all__ = ["MAPS_MIB", "write_documents", "write_page"]
