"""Data sets: anything a user has, read once into three splits of images and labels. No torch.

`read` lists and checks a folder, zip, .npz, manifest or a built-in set; `Samples.batch` decodes; `augment`
changes batches; `windows` cuts images with masks at their own scale. docs/data.md has the formats and rules.
"""

from niwaki.data import augment
from niwaki.data.read import read
from niwaki.data.samples import Bands, DataSet, Problem, Samples
from niwaki.data.windows import windows

__all__ = ["Bands", "DataSet", "Problem", "Samples", "augment", "read", "windows"]
