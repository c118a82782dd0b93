// Pieces of PTX's text.
#pragma once
#include <cctype>
#include <cstring>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

using std::string;
using std::to_string;
using std::vector;

[[noreturn]] inline void refuse(const string &what) { throw std::runtime_error(what); }

inline bool starts(const string &s, const char *with) { return s.rfind(with, 0) == 0; }

inline string trimmed(const string &s) {
    size_t a = s.find_first_not_of(" \t\r\n"), b = s.find_last_not_of(" \t\r\n");
    return a == string::npos ? "" : s.substr(a, b - a + 1);
}

// At commas outside of brackets.
inline vector<string> parts(const string &s, char separator = ',') {
    vector<string> out;
    int depth = 0;
    string part;
    for (char c : s) {
        if (strchr("([{", c)) depth++;
        if (strchr(")]}", c)) depth--;
        if (c == separator && depth == 0) out.push_back(trimmed(part)), part.clear();
        else part += c;
    }
    if (!trimmed(part).empty()) out.push_back(trimmed(part));
    return out;
}

inline vector<string> words(const string &s) {
    std::istringstream in(s);
    vector<string> out;
    for (string w; in >> w;) out.push_back(w);
    return out;
}

inline string without_comments(const string &s) {
    string out;
    for (size_t i = 0; i < s.size(); i++) {
        if (s[i] == '"') {
            size_t end = s.find('"', i + 1);
            if (end == string::npos) end = s.size() - 1;
            out += s.substr(i, end - i + 1), i = end;
        } else if (s.compare(i, 2, "//") == 0) {
            while (i < s.size() && s[i] != '\n') i++;
            out += '\n';
        } else if (s.compare(i, 2, "/*") == 0) {
            i = s.find("*/", i);
            if (i == string::npos) break;
            i++, out += ' ';
        } else out += s[i];
    }
    return out;
}

// An instruction's words or operands; none beyond the last.
struct List : vector<string> {
    List(vector<string> v) : vector<string>(std::move(v)) {}
    const string &operator[](size_t i) const {
        if (i >= size()) refuse("it has other parts than is known");
        return at(i);
    }
};

inline unsigned size_of(const string &type) {
    if (type.find('e') != string::npos && type != "pred") refuse("the type ." + type + " is not known");
    if (type == "pred") return 1;
    size_t at = type.find_first_of("0123456789");
    if (at == string::npos) refuse("the type ." + type + " is not known");
    unsigned size = (unsigned)std::stoul(type.substr(at)) / 8;
    return type.find("x2") != string::npos && size == 2 ? 4 : size;
}

// A name of PTX as one of C++.
inline string c_name(const string &s) {
    string out = "v_";
    for (char c : s) out += isalnum((unsigned char)c) || c == '_' ? string(1, c) : "_" + to_string((int)c) + "_";
    return out;
}
