package consumer

import "hash/maphash"

// repeats remembers the tasks that went into lanes lately. A sender that repeats
// itself puts a task into the log again soon after the first time; what it repeats
// is looked up before it runs. Whatever is forgotten may run twice, and only its
// commit tells. Its caller serialises access.
type repeats struct {
	seed   maphash.Seed
	hashes []uint64 // by their low bits
}

const rememberedTasks = 1 << 13

// again remembers a task and reports whether it was remembered already.
func (r *repeats) again(id string) bool {
	if r.hashes == nil {
		r.seed = maphash.MakeSeed()
		r.hashes = make([]uint64, rememberedTasks)
	}
	h := maphash.String(r.seed, id)
	place := &r.hashes[h%rememberedTasks]
	repeated := *place == h
	*place = h
	return repeated
}

// forget forgets all tasks: those of a partition that comes back are read again.
func (r *repeats) forget() { clear(r.hashes) }
