"""Networks of table 2 behind the interface of every network."""

import dataclasses

import pytest

from caswit.config import ModelConfig
from caswit.errors import ConfigError

ISDNET = ModelConfig(arch="isdnet")


class TestSettings:
    def test_they_need_a_name_alone(self):
        assert ISDNET.encoder is None
        assert ISDNET.width == 1
        assert not ISDNET.reads_context
        assert ModelConfig(arch="fctl").reads_context

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"encoder": "resnet18"}, "encoder is for baselines of segmentation_models_pytorch, got 'resnet18'"),
            ({"size": "nano"}, "size is for caswit, got 'nano' with arch isdnet; leave it out"),
            ({"width": 0.0}, r"width must be above 0 and at most 4, got 0\.0; try 0\.25"),
            ({"width": float("nan")}, "width must be above 0"),
            ({"encoder_weights": "places"}, "encoder_weights of arch isdnet must be imagenet or null, got 'places'"),
            ({"encoder_weights": "imagenet", "width": 0.5}, "encoder_weights need width 1, got 0.5"),
            ({"arch": "unet", "encoder": "resnet18", "width": 0.5}, "width is for stdc1, .* with arch unet; leave it"),
            ({"arch": "caswit", "width": 0.5}, "width is for stdc1, .*, got 0.5 with arch caswit; try size"),
        ],
    )
    def test_what_has_no_meaning_is_refused(self, settings, message):
        with pytest.raises(ConfigError, match=message):
            dataclasses.replace(ISDNET, **settings)
