package app

import (
	"os"
	"runtime/debug"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/rs/zerolog"
)

// collectAt is how much garbage there may be for what is live, in percent. Go's
// default of 100 costs a worker under load a fifth of its processor time.
const collectAt = 400

// TuneMemory lets the heap grow until it meets the memory that the process may
// have: nine tenths of what its cgroup, or else the machine, has. GOGC and
// GOMEMLIMIT take precedence, each for itself.
func TuneMemory(log zerolog.Logger) {
	limit, err := memlimit.Set(memlimit.WithProvider(memlimit.ApplyFallback(memlimit.FromCgroup, memlimit.FromSystem)))
	if err != nil {
		// Without a limit more garbage could be what ends the process.
		log.Warn().Err(err).Msg("cannot learn how much memory there is; set GOMEMLIMIT")
		return
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(collectAt)
	}
	log.Debug().Int64("bytes", limit).Msg("memory limit of the process")
}
