"""What a script gets as `caffe`: `module` is that module, `io` its `caffe.io`; here are the same names."""

from autonuq.pycaffe.module import TEST as TEST
from autonuq.pycaffe.module import TRAIN as TRAIN
from autonuq.pycaffe.module import Layer as Layer
from autonuq.pycaffe.module import Net as Net
from autonuq.pycaffe.module import __all__ as __all__
from autonuq.pycaffe.module import __version__ as __version__
from autonuq.pycaffe.module import init_log as init_log
from autonuq.pycaffe.module import install as install
from autonuq.pycaffe.module import io as io
from autonuq.pycaffe.module import proto as proto
from autonuq.pycaffe.module import set_device as set_device
from autonuq.pycaffe.module import set_mode_cpu as set_mode_cpu
from autonuq.pycaffe.module import set_mode_gpu as set_mode_gpu
from autonuq.pycaffe.module import set_random_seed as set_random_seed
