"""Pictures under heat maps."""

import numpy as np
import pytest

from selattn_lib.maps.overlay import colour_map, overlay


def test_colour_map_is_viridis_with_rising_lightness():
    colours = colour_map()
    assert colours.shape == (256, 3) and colours.dtype == np.uint8
    assert colours[0].tolist() == [68, 1, 84] and colours[-1].tolist() == [253, 231, 37]
    assert (np.diff(colours @ [0.2126, 0.7152, 0.0722]) > -0.5).all()


def test_overlay_colours_heat_and_outlines_the_mask():
    image = np.full((32, 32, 3), 100, np.uint8)
    heat = np.zeros((32, 32))
    heat[8:24, 8:24] = 1
    plain = overlay(image, heat, zoom=4)
    expected = 0.65 * np.array([[68, 1, 84], [253, 231, 37]]) + 0.35 * 100
    np.testing.assert_allclose([plain[4, 4], plain[64, 64]], expected, atol=1)
    lined = overlay(image, heat, threshold=0.5, zoom=4)
    changed = (lined != plain).any(axis=-1)
    y, x = np.nonzero(changed)
    assert changed.any() and (lined[changed] == 255).all(axis=-1).any()
    assert min(y.min(), x.min()) > 28 and max(y.max(), x.max()) < 99  # along the mask's edge at 32 and 96
    assert not changed[40:88, 40:88].any()
    assert overlay(image, None).shape == (256, 256, 3)
    with pytest.raises(ValueError, match=r"truth has shape \(2, 2\)"):
        overlay(image, heat, truth=np.zeros((2, 2), bool))
