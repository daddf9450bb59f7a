import sys

from edc_ray.cli import main

sys.exit(main())
