"""Networks that timm does not have, registered beside its own, so that `backbone.name` finds them.

Add one: a file here and a line below. It offers what Detector uses of a timm model:
forward_features (maps [N,C,h,w]), forward_head, get_classifier, reset_classifier, num_features,
head_hidden_size, and forward_intermediates with feature_info if its inner maps are to be tied
across qualities.
"""

from dfdetect.networks.f3net import F3Net, F3NetFad
from dfdetect.networks.mesoinception4 import MesoInception4

__all__ = ["F3Net", "F3NetFad", "MesoInception4"]
