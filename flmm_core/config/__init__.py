"""The settings of a run. YAML stops here: all else takes plain numbers and built parts."""

from flmm_core.config.listing import Setting as Setting
from flmm_core.config.listing import option_name as option_name
from flmm_core.config.listing import settings as settings
from flmm_core.config.resolve import load_config as load_config
from flmm_core.config.settings import BaseChannels as BaseChannels
from flmm_core.config.settings import EnlargeTo as EnlargeTo
from flmm_core.config.settings import HeadConfig as HeadConfig
from flmm_core.config.settings import PoolEnds as PoolEnds
from flmm_core.config.settings import PoolName as PoolName
from flmm_core.config.settings import ProtocolName as ProtocolName
from flmm_core.config.settings import RunConfig as RunConfig
from flmm_core.config.settings import Section as Section
from flmm_core.config.settings import Workers as Workers
from flmm_core.config.skip_limit import MAX_SKIPPED as MAX_SKIPPED
from flmm_core.config.skip_limit import SkipLimit as SkipLimit
