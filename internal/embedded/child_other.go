//go:build unix && !linux

package embedded

import "syscall"

// childAttributes keeps the terminal's Ctrl-C from a child and takes root from
// it. This system cannot tie a child's life to its parent's: one whose parent is
// killed is stopped when the data directory is opened again.
func childAttributes(acct *account, _ syscall.Signal) *syscall.SysProcAttr {
	attr := &syscall.SysProcAttr{Setpgid: true}
	if acct != nil {
		attr.Credential = &syscall.Credential{Uid: acct.uid, Gid: acct.gid}
	}
	return attr
}
