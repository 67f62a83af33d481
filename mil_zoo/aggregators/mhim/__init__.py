"""MHIM-MIL: ``masking`` trains a student against its teacher, ``network`` is what both of them are."""

from mil_zoo.aggregators.mhim.masking import MHIM

__all__ = ["MHIM"]
