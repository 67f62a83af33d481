"""A layout from a plugin file: text, one patch a line, x and y and then the features."""

import numpy as np

from mil_zoo import register_layout
from mil_zoo.data.layouts.base import Claim, Layout, Sure, make_bag


@register_layout("rows")
class Rows(Layout):
    about = "<slide>.rows: x y feature feature ..., one patch a line"
    suffixes = (".rows",)

    def claim(self, path):
        return Claim(Sure.SUFFIX, "a .rows file")

    def read(self, path):
        values = np.loadtxt(path, dtype=np.float32, ndmin=2)
        features, coords = np.ascontiguousarray(values[:, 2:]), np.ascontiguousarray(values[:, :2])
        return make_bag(path, self.slide_id(path), self.name, features, coords, 512.0, "512 px by agreement")

    def shape(self, path):
        values = np.loadtxt(path, ndmin=2)
        return len(values), values.shape[1] - 2
