"""Import of networks trained elsewhere, and export of networks for other programs."""

from wsflow.zoo.exchange.exporting import export_network, export_zoo
from wsflow.zoo.exchange.importing import import_zoo

__all__ = ["export_network", "export_zoo", "import_zoo"]
