"""A layer in Python that halves what it reads, as the text of its module."""

MODULE = """
import caffe


class Halved(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data / 2
"""
