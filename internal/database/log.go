package database

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"os"
)

// The format of the write-ahead log: https://sqlite.org/fileformat.html#the_write_ahead_log
const (
	logHeader   = 32
	frameHeader = 24
)

// checkLog returns an error if transactions that were committed are missing in
// the write-ahead log. SQLite takes the first damage in it for its end, as a
// crash may have cut off the last transaction. But if another transaction
// follows, the one before it was on the disk.
//
// Size is that of the log when the process that was killed noted it last.
//
// Damage to the last transaction cannot be told from a crash while it was
// written, nor can the loss of what was written after size was noted.
func checkLog(name string, size int64, running bool) error {
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		if running {
			return errors.New("its log " + name + " is missing")
		}
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() < size {
		return errors.Join(errors.New("its log "+name+" is cut off"), err)
	}
	r := bufio.NewReaderSize(f, 1<<20)
	header := make([]byte, logHeader)
	if n, err := io.ReadFull(r, header); err != nil {
		if n == 0 && size == 0 {
			return nil
		}
		return errors.New("its log " + name + " is cut off")
	}
	magic := binary.BigEndian.Uint32(header)
	sum := logSum{order: binary.LittleEndian}
	if magic&1 == 1 {
		sum.order = binary.BigEndian
	}
	pageSize := binary.BigEndian.Uint32(header[8:])
	sum.add(header[:24])
	if magic&^1 != 0x377f0682 || !sum.equals(header[24:]) || pageSize < 512 || pageSize > 65536 {
		return errors.New("the header of its log " + name + " is damaged")
	}
	salt := header[16:24]
	frame := make([]byte, frameHeader+pageSize)
	broken, ended := false, false // a frame is damaged; its transaction has ended
	for {
		if _, err := io.ReadFull(r, frame); err != nil {
			return nil
		}
		ours := bytes.Equal(frame[8:16], salt)
		sum.add(frame[:8])
		sum.add(frame[frameHeader:])
		valid := ours && sum.equals(frame[16:])
		if valid && broken && ended {
			return errors.New("its log " + name + " is damaged")
		}
		broken = broken || !valid // or it is left of an earlier log
		commits := binary.BigEndian.Uint32(frame[4:]) != 0
		ended = ended || broken && commits
		// the next frame continues from what this one claims
		sum.a, sum.b = binary.BigEndian.Uint32(frame[16:]), binary.BigEndian.Uint32(frame[20:])
	}
}

// logSum is the checksum of the log, which goes on from frame to frame.
type logSum struct {
	order binary.ByteOrder
	a, b  uint32
}

func (s *logSum) add(p []byte) {
	for ; len(p) >= 8; p = p[8:] {
		s.a += s.order.Uint32(p) + s.b
		s.b += s.order.Uint32(p[4:]) + s.a
	}
}

func (s *logSum) equals(p []byte) bool {
	return binary.BigEndian.Uint32(p) == s.a && binary.BigEndian.Uint32(p[4:]) == s.b
}
