"""The contact sheet shows the frames that evaluation sees, in place."""

import numpy as np

from fsar_jax.data.frames import encode_jpeg
from fsar_jax.visualize.contact_sheet import LABEL_WIDTH, contact_sheet


class ThreeClips:
    """Two classes; frame i of a clip is grey level 10·i, with a box in the first class."""
    class_names = ['still', 'other', 'moving']
    labels = np.array([0, 2, 2])

    def read(self, position):
        frames = [encode_jpeg(np.full((16, 16, 3), 10 * i, np.uint8), 95) for i in range(20)]
        boxes = np.zeros((20, 4)) if position else np.tile([2.0, 2, 12, 12], (20, 1))
        return {'frames': frames, 'boxes': boxes, 'action_start': 1, 'action_end': 5}


def test_rows_are_classes_and_columns_the_test_frames():
    sheet = np.asarray(contact_sheet(ThreeClips(), length=4, columns=1, height=16))
    assert sheet.shape == (32, LABEL_WIDTH + 4 * 16, 3)
    shown = sheet[16:, LABEL_WIDTH:].reshape(16, 4, 16, 3).mean((0, 2, 3))
    np.testing.assert_allclose(shown, [10, 60, 120, 180], atol=2)      # frames 1, 6, 12, 18: the published rule, from 1 to n − 2
    assert (sheet[2, LABEL_WIDTH + 2:LABEL_WIDTH + 13] == 255).all()   # the box of the first class
    assert (sheet[:16, :LABEL_WIDTH] > 200).any()                      # its name is written
